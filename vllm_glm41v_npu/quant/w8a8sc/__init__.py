# SPDX-License-Identifier: Apache-2.0
"""W8A8SC: compressed W8A8S, in one set of files for each tensor-parallel rank.

| module                | what it holds                                                       |
|-----------------------|---------------------------------------------------------------------|
| `container`           | the tensors of one compressed weight, and their checksums           |
| `portable`, `cann`    | the two codecs                                                      |
| `record`, `shards`    | the files: how they were made; reading, checking and writing them   |
| `ranks`               | every rank's share of a checkpoint                                  |
| `sources`             | the tensors that are compressed: a checkpoint's, or saved shards'   |
| `compressor`          | from these tensors to the files                                     |
"""
