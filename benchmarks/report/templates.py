# SPDX-License-Identifier: Apache-2.0
"""Jinja templates of the report."""

from __future__ import annotations

HTML = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1e293b; background: #f8fafc; margin: 0; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin: 0; } h3 { font-size: 1rem; }
section { background: white; border: 1px solid #e2e8f0; border-radius: 8px; padding: 1.2rem;
  margin: 1.2rem 0; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.87rem; }
th, td { text-align: left; padding: 0.3rem 0.6rem; border-bottom: 1px solid #e2e8f0;
  vertical-align: top; }
td.figure { font-variant-numeric: tabular-nums; }
code, pre { font: 0.85em ui-monospace, monospace; }
pre { background: #fef2f2; padding: 0.8rem; overflow-x: auto; }
svg { width: 100%; height: auto; }
.failed { color: #b91c1c; } .measured { color: #047857; } .note { color: #475569; }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
{% for place in places %}
<p>{{ place.machine.cores }} cores of {{ place.machine.cpu }}, {{ place.machine.memory_gib }} GiB,
device {{ place.machine.device }}, {{ place.machine.date }};
{% for name, version in place.versions.items() %}{{ name }} {{ version }}{{ ", " if not loop.last }}
{% endfor %}
{% if places | length > 1 %}({{ place.names | join(", ") }}){% endif %}</p>
{% endfor %}
<p class="note">Figures are medians of interleaved rounds, with their range. "Times better" is taken
round by round: above 1, ours takes less time or memory, or does more, than the peer. The floor is
the least time that the machine could take.</p>
<section>
<h2>In all</h2>
<table>
<tr><th>benchmark</th><th></th><th>seconds</th><th>command</th></tr>
{% for result in results %}
<tr><td><a href="#{{ result.name }}">{{ result.title }}</a></td>
<td class="{{ result.status.split()[0] }}">{{ result.status }}</td>
<td>{{ "%.0f" | format(result.seconds) }}</td><td><code>{{ result.command }}</code></td></tr>
{% endfor %}
</table>
</section>
{% for result in results %}
<section id="{{ result.name }}">
<h2>{{ result.title }}</h2>
{% if result.status != "measured" %}
<p class="{{ result.status.split()[0] }}">{{ result.status }}</p>
<pre>{{ result.why }}</pre>
{% endif %}
{% for note in result.notes %}
<p class="note">{{ note }}</p>
{% endfor %}
{% for heading, svg in plots[result.name] %}
<h3>{{ heading }}</h3>
{{ svg }}
{% endfor %}
{% if result.rows %}
<table>
<tr>{% for column in columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in result.rows %}
<tr>{% for cell in cells(row) %}<td class="figure">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}
</section>
{% endfor %}
<section id="missing">
<h2>Not measured</h2>
<table>
<tr><th>benchmark</th><th>what</th><th>why</th></tr>
{% for names, one in missing %}
<tr><td>{{ names }}</td><td>{{ one.what }}</td><td>{{ one.why }}</td></tr>
{% endfor %}
</table>
</section>
</main>
</body>
</html>
"""

MARKDOWN = """\
# {{ title }}

{% for place in places %}
{{ place.machine.cores }} cores of {{ place.machine.cpu }}, {{ place.machine.memory_gib }} GiB, \
device {{ place.machine.device }}, {{ place.machine.date }}; \
{% for name, version in place.versions.items() %}\
{{ name }} {{ version }}{{ ", " if not loop.last }}{% endfor %}\
{% if places | length > 1 %} ({{ place.names | join(", ") }}){% endif %}


{% endfor %}
Figures are medians of interleaved rounds, with their range. "Times better" is taken round by round:
above 1, ours takes less time or memory, or does more, than the peer. The floor is the least time
that the machine could take.
{% for result in results %}

## {{ result.title }}

{{ result.status }}{% if result.command %}, {{ "%.0f" | format(result.seconds) }} s: \
`{{ result.command }}`{% endif %}

{% if result.status != "measured" %}

```
{{ result.why }}
```
{% endif %}
{% for note in result.notes %}

{{ note }}
{% endfor %}
{% if result.rows %}

| {{ columns | join(" | ") }} |
|{{ "---|" * (columns | length) }}
{% for row in result.rows %}
| {% for cell in cells(row) %}{{ cell | cell }}{{ " | " if not loop.last }}{% endfor %} |
{% endfor %}
{% endif %}
{% endfor %}

## Not measured

| benchmark | what | why |
|---|---|---|
{% for names, one in missing %}
| {{ names | cell }} | {{ one.what | cell }} | {{ one.why | cell }} |
{% endfor %}
"""
