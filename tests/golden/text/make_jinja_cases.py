#!/usr/bin/env python3
"""Writes jinja_cases.json: templates, what they are given, and what jinja2 makes of them.

    python3 -m venv venv && venv/bin/pip install jinja2==3.1.6
    venv/bin/python tests/golden/text/make_jinja_cases.py

jinja2 is set up as transformers 5.24 does for chat templates. Each case: "template", "context", and "text" or, where jinja2 raises,
"fails". strftime_now() is given 2023-11-14 22:13:20 in UTC. The whole templates at the end are in the manner of well-known models'.
"""

import datetime
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.sandbox

NOW = datetime.datetime(2023, 11, 14, 22, 13, 20)


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller):
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Refuses names that begin with an underscore."""

    def __init__(*args, **kwargs):
        itself, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            Namespace.check(name)
        jinja2.utils.Namespace.__init__(itself, attributes)

    def __setitem__(self, name, value):
        Namespace.check(name)
        super().__setitem__(name, value)

    @staticmethod
    def check(name):
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"{name} in a namespace")


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                        extensions=[Generation, jinja2.ext.loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = NOW.strftime
    made.globals["namespace"] = Namespace
    return made


DATA = {"a": 3, "b": -7, "f": 2.5, "s": "  Hello Wörld  ", "t": "a,b,,c", "u": "日本語 text", "yes": True, "no": None, "q": "it's \"so\"\n<b>",
        "l": [3, 1, 2], "w": ["b", "A", "c", "a"], "e": [], "d": {"x": 1, "y": [1, 2.0, None, True], "z": {"k": "v'"}},
        "m": [{"role": "user", "n": 1, "on": True}, {"role": "assistant", "n": 2, "on": False}, {"role": "user", "n": 3}]}

SMALL = [
    # White space
    "a\n{% if yes %}\nb\n{% endif %}\nc", "  {% if yes %}  x{% endif %}  \n  y", "  {%+ if yes %}x{%+ endif %}\n", "a  {%- if yes -%}  b  {%- endif -%}  c",
    "{# one #}\n{# two -#}   x {#- three #}y", "  {# c #}\nz", "{{ a }}\n{{- a }} {{ a -}}\n {{ a }}\n\n", "x\r\n{% if yes %}\r\ny{% endif %}\r\n",
    "{% raw %}\n{{ no }}{% if %}\n{% endraw %}\nend", "a {%- raw -%}  {{ b }}  {%- endraw -%} c", "{% if yes %}{{ a }}{% endif +%}\nx", "\n\n{{ a }}\n\n",
    "{% for i in l %}\n  {{ i }}\n{% endfor %}\n", "   {{ a }}   {% set z = 1 %}   {{ z }}", "{{ '{{' }} }} %} #} { {", "{% set z = 1 -%}\n  t", "\t{%- set z = 1 %}\n\tt",
    "{{ {'a': {'b': 1}}['a']['b'] }}", "{#\n multi\n line #}after", "a{% if yes %}\n\n\nb{% endif %}",
    # Literals and printing
    "{{ 'a' \"b\" 'c' }}", "{{ 'a\\n\\t\\'\\\\ \\x41 \\u00e9 \\d \\101' }}", "{{ 1_000 }} {{ 1.5e3 }} {{ 1e20 }} {{ 1e-7 }} {{ 0.1 }} {{ 100.0 }} {{ 1e16 }} {{ 123456789012345.6 }}",
    "{{ true }} {{ True }} {{ none }} {{ None }} {{ false }}", "{{ [1, 'a', none, 2.0] }} {{ (1,) }} {{ (1, 2) }} {{ () }} {{ [] }} {{ {} }}", "{{ d }}", "{{ [q] }} {{ [u] }} {{ ['\\x07\\u200b'] }}",
    "{{ missing }}|{{ d.missing }}|{{ l[9] }}", "{{ yes, no }}", "{{ d.keys() }} {{ d.values() }} {{ {'a': 1}.items() }}", "{{ {'a': 1, 'a': 2, 1: 'x', true: 'y'} }}",
    # Operators
    "{{ a + b }} {{ a - b }} {{ a * b }} {{ a / 2 }} {{ b // 2 }} {{ b % 4 }} {{ a ** 2 }} {{ 2 ** -1 }} {{ -a }} {{ +a }}", "{{ f * 2 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 1 + 1.0 }} {{ true + 1 }}",
    "{{ 'a' + 'b' }} {{ 'ab' * 2 }} {{ [1] + [2] }} {{ [0] * 3 }} {{ 1 ~ 'x' ~ none ~ missing ~ [1] }}", "{{ 2 + 3 * 4 ** 2 - 1 }} {{ (2 + 3) * 4 }} {{ -2 ** 2 }} {{ 2 ** 3 ** 2 }}",
    "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 'a' == 1 }} {{ 1 != 2 }} {{ a >= 3 }} {{ none == none }}",
    "{{ 1 in l }} {{ 9 not in l }} {{ 'ell' in s }} {{ 'x' in d }} {{ 'k' in d.z }} {{ 1 in missing }} {{ not 1 in l }}",
    "{{ 0 or 'x' }} {{ 1 and 'y' }} {{ '' or none }} {{ not '' }} {{ not not l }} {{ missing or 'm' }} {{ 1 and 0 or 2 }}", "{{ 'p' if yes else 'q' }} {{ 'p' if no else 'q' }} {{ 'p' if no }}|{{ 1 if 0 else 2 if 0 else 3 }}",
    "{{ missing == missing }} {{ missing != 1 }} {{ missing is undefined }} {{ true == 1 }} {{ (1, 2) == [1, 2] }}", "{{ 5 // 0 }}", "{{ 1 + 'a' }}", "{{ 'a' + missing }}", "{{ missing.x }}", "{{ missing() }}", "{{ 1 < 'a' }}", "{{ 1 in 5 }}", "{{ a.b.c }}",
    # Attributes, items, slices
    "{{ d.x }} {{ d['x'] }} {{ d['z'].k }} {{ d.z['k'] }} {{ l[0] }} {{ l[-1] }} {{ l.0 }} {{ u[1] }} {{ u[-1] }}", "{{ d['y'][1:3] }} {{ l[::-1] }} {{ l[1:] }} {{ l[:-1] }} {{ l[5:] }} {{ l[-2:] }} {{ u[::-1] }} {{ u[1:3] }} {{ u[::2] }}",
    "{{ l[2:0:-1] }} {{ l[-1::-2] }} {{ (1, 2, 3)[:2] }} {{ 'abc'[-10:2] }} {{ 'abc'[10:] }}|", "{% set i = {'items': 5, 'get': 6} %}{{ i['items'] }} {{ i.items() | list }} {{ i.get('get') }} {{ i['keys']() | list }}", "{{ m[0].role ~ m[1]['role'] }} {{ m[2].on }}|",
    "{{ l.append(4) }}", "{{ d.update({'x': 2}) }}", "{{ d.pop('x') }}", "{{ l.append is defined }} {{ l.append is undefined }}", "{{ range(3)[1] }} {{ range(2, 8, 3) | list }} {{ range(3, 0, -1) | list }} {{ range(3) | length }}", "{{ range(200000) | length }}",
    # Text methods
    "[{{ s.strip() }}] [{{ s.lstrip() }}] [{{ s.rstrip() }}] [{{ 'xxaxx'.strip('x') }}] [{{ 'abcba'.lstrip('ab') }}] [{{ '\\n\\n t\\n'.rstrip('\\n') }}]", "{{ t.split(',') }} {{ ' a  b c '.split() }} {{ 'a b c d'.split(' ', 2) }} {{ 'a b c'.split(none, 1) }} {{ ''.split(',') }} {{ ''.split() }} {{ 'a,b,c'.split(',', maxsplit=1) }}",
    "{{ 'a b c d'.rsplit(' ', 1) }} {{ '  a b  c '.rsplit(none, 1) }} {{ 'a<x>b<x>c'.rsplit('<x>') }} {{ ' a b c '.split(none, 1) }}", "{{ 'a\\nb\\r\\nc\\n'.splitlines() }} {{ 'a\\nb\\n'.splitlines(true) }} {{ ''.splitlines() }}", "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'bc')) }} {{ 'abc'.startswith('') }} {{ 'abc'.endswith('abcd') }}",
    "{{ 'aaa'.replace('a', 'b', 2) }} {{ 'abc'.replace('', '-') }} {{ 'abc'.replace('x', 'y') }} {{ u.replace('本', '') }}", "{{ u.upper() }} {{ 'ÀÉ x'.lower() }} {{ 'hello wORLD it\\'s'.title() }} {{ 'hELLO w'.capitalize() }}",
    "{{ u.find('語') }} {{ 'abcabc'.rfind('b') }} {{ 'abc'.find('x') }} {{ 'abcabc'.count('bc') }} {{ 'aaa'.count('aa') }} {{ 'abc'.count('') }} {{ 'abc'.index('c') }}", "{{ ', '.join(w) }} {{ ''.join([]) }} {{ '-'.join('abc') }} {{ '-'.join(d) }}", "{{ ','.join([1]) }}",
    "{{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.py'.removesuffix('.py') }} {{ 'x'.removeprefix('y') }}", "{{ '12'.isdigit() }} {{ 'a1'.isalnum() }} {{ 'aé'.isalpha() }} {{ ' '.isspace() }} {{ ''.isdigit() }} {{ 'AB1'.isupper() }} {{ 'ab'.islower() }}", "{{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'a'.partition('=') }} {{ 'a'.rpartition('=') }}", "{{ 'abc'.nothing }}|{{ 'abc'.nothing is defined }}", "{{ 'abc'.index('x') }}", "{{ 'x'.split('') }}",
    # Dict and list methods
    "{{ d.get('x') }} {{ d.get('n') }} {{ d.get('n', 5) }} {{ d.keys() | list }} {{ d.values() | first }} {% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{{ l.index(1) }} {{ [1, 2, 1].count(1) }} {{ (1, 2).index(2) }}", "{{ l.index(9) }}", "{{ d.copy() == d }} {{ dict(a=1, b=2) }} {{ dict({'a': 1}, b=2) }} {{ dict([('k', 'v')]) }}", "{{ d.get() }}", "{{ d.keys()[0] }}|",
    # Filters
    "{{ l | length }} {{ u | length }} {{ d | count }} {{ missing | length }}", "{{ 5 | length }}", "[{{ s | trim }}] [{{ 'xax' | trim('x') }}] {{ 3 | trim }}", "{{ u | upper }} {{ 'AB' | lower }} {{ 'hello-world foo(bar' | title }} {{ 'aBC dE' | capitalize }}", "{{ 'aXbX' | replace('X', '.') }} {{ 'aXbX' | replace('X', '.', 1) }} {{ 121 | replace(1, 3) }}",
    "{{ l | join }} {{ l | join(', ') }} {{ m | join('-', attribute='n') }} {{ 'abc' | join('.') }}", "{{ missing | default('x') }} {{ '' | default('x') }}|{{ '' | default('x', true) }} {{ none | d('y') }} {{ none | d('y', boolean=True) }} {{ missing | d }}|", "{{ l | first }} {{ l | last }} {{ u | first }} {{ e | first }}|{{ e | last }}|{{ d | first }}",
    "{{ 'abc' | list }} {{ d | list }} {{ (1, 2) | list }} {{ missing | list }}", "{{ 5 | string + 'x' }} {{ none | string }} {{ '3' | int + 1 }} {{ '3.9' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ 3.7 | int }} {{ '0x1F' | int(base=16) }} {{ '1f' | int(0, 16) }} {{ ' 42 ' | int }} {{ none | int }} {{ -3.7 | int }}",
    "{{ '2.5' | float }} {{ 3 | float }} {{ 'x' | float }} {{ 'x' | float(1.5) }} {{ '1e3' | float }} {{ '-inf' | float }}", "{{ -3 | abs }} {{ b | abs }} {{ -2.5 | abs }}", "{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 42 | round }} {{ 2.345 | round(1, 'ceil') }} {{ 2.345 | round(1, 'floor') }} {{ 1234.5 | round(-2) }} {{ -0.4 | round }}",
    "{{ d | tojson }} {{ q | tojson }} {{ u | tojson }} {{ '\\x01\\x7f\\t' | tojson }} {{ 1.0 | tojson }} {{ none | tojson }} {{ (1, 2) | tojson }}", "{{ d | tojson(indent=2) }}", "{{ d | tojson(indent=4, ensure_ascii=True) }} {{ [] | tojson(indent=2) }} {{ {'é😀': {}} | tojson(ensure_ascii=true) }}", "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }} {{ {'b': [1, 2]} | tojson(separators=(',', ':')) }} {{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }}", "{{ missing | tojson }}", "{{ [1, [2, {}]] | tojson(indent='--') }}",
    "{% for k, v in d | items %}{{ k }};{% endfor %}{{ missing | items | list }}", "{{ 5 | items | list }}", "{{ {'b': 1, 'A': 3, 'c': 2} | dictsort }} {{ {'b': 1, 'A': 3, 'c': 2} | dictsort(by='value', reverse=true) }} {{ {'b': 1, 'A': 3} | dictsort(true) }}", "{{ l | reverse | list }} {{ u | reverse }} {% for x in l | reverse %}{{ x }}{{ loop.revindex }}{% endfor %}",
    "{{ l | sort }} {{ w | sort }} {{ w | sort(case_sensitive=true) }} {{ w | sort(reverse=true) }} {{ m | sort(attribute='role') | map(attribute='n') | list }}", "{{ [1, 'a'] | sort }}", "{{ [1, 2, 1, 'a', 'A'] | unique | list }} {{ m | unique(attribute='role') | map(attribute='n') | list }}", "{{ m | map(attribute='role') | list }} {{ m | map(attribute='on', default='?') | join(',') }} {{ w | map('upper') | list }} {{ ['a b', 'c'] | map('replace', ' ', '_') | join('|') }} {{ [d] | map(attribute='z.k') | list }}",
    "{{ l | select('odd') | list }} {{ l | reject('gt', 1) | list }} {{ [0, 1, '', 'a'] | select | list }} {{ [none, 1] | reject('none') | list }} {{ l | select('in', [1, 2]) | list }}", "{{ m | selectattr('role', 'equalto', 'user') | map(attribute='n') | list }} {{ m | rejectattr('role', '==', 'user') | list | length }} {{ m | selectattr('on') | list | length }} {{ m | selectattr('on', 'defined') | list | length }}", "{{ l | sum }} {{ m | sum(attribute='n') }} {{ l | sum(start=10) }} {{ e | sum }} {{ l | min }} {{ l | max }} {{ w | max }} {{ e | max }}|{{ m | max(attribute='n') }}",
    "{{ 'a\\nb\\n\\nc' | indent }}|{{ 'a\\nb' | indent(2, true) }}|{{ 'a\\n\\nb' | indent(2, blank=true) }}|{{ 'a\\nb\\n' | indent('> ') }}|{{ '' | indent }}|", "{{ q | e }} {{ '<a>' | safe }} {{ '&' | escape }}", "{{ ['a', 'b'] | join(', ') | upper | replace('A', 'z') }} {{ -1 | abs + 2 }} {{ 'a' ~ 'b' | upper }} {{ (1, 2) | length == 2 }}", "{{ m | selectattr('n', 'gt', 5) | first }}|{% if l | select('gt', 99) %}yes{% else %}no{% endif %}", "{% set g = l | map('string') %}{{ g | first }}{{ g | join('.') }}|{{ g | join('.') }}", "{{ d | attr('x') }}|{{ m | last | attr('n') }}",
    # Tests
    "{{ a is defined }} {{ missing is defined }} {{ no is none }} {{ s is string }} {{ d is mapping }} {{ l is iterable }} {{ a is iterable }} {{ s is sequence }} {{ d is sequence }} {{ a is sequence }} {{ d.keys() is sequence }} {{ missing is sequence }} {{ missing is iterable }}", "{{ a is number }} {{ f is number }} {{ s is number }} {{ yes is number }} {{ a is integer }} {{ yes is integer }} {{ f is float }} {{ yes is boolean }} {{ yes is true }} {{ no is false }} {{ 1 is true }} {{ range is callable }}",
    "{{ a is odd }} {{ a is even }} {{ a is divisibleby 3 }} {{ a is divisibleby(2) }} {{ a is eq 3 }} {{ a is equalto 4 }} {{ a is ne 3 }} {{ a is lt 4 }} {{ a is gt(4) }} {{ 1 is in l }} {{ 9 is not in [1] }} {{ a is ge 3 }} {{ a is sameas a }} {{ none is sameas none }}", "{{ a is not defined }} {{ not a is defined }} {{ a is defined and b is defined }} {{ 'x' if a is string else 'y' }} {{ 'abc' is lower }} {{ 'ABC' is upper }} {{ 'trim' is filter }} {{ 'nope' is test }}", "{{ 'a' is odd }}", "{{ s is string and (l is mapping or no is none) }}",
    # Statements
    "{% if a > 5 %}x{% elif a > 2 %}y{% else %}z{% endif %}{% if no %}x{% elif no %}y{% endif %}.", "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.previtem }}{{ loop.nextitem }} {{ loop.depth }}\n{% endfor %}", "{% for x in e %}x{% else %}none{% endfor %}{% for x in missing %}x{% else %}nothing{% endfor %}", "{% for k, v in [(1, 2), [3, 4]] %}{{ k }}-{{ v }} {% endfor %}{% for (a, (b, c)) in [(1, (2, 3))] %}{{ a + b + c }}{% endfor %}",
    "{% for x in l if x > 1 %}{{ x }}{{ loop.index }}{{ loop.length }} {% endfor %}{% for x in l if x > 9 %}{% else %}none{% endfor %}", "{% for x in range(9) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}", "{% for x in l %}{% for y in w %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}", "{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}", "{% if yes %}{% set z = 5 %}{% endif %}{{ z }}{% for i in l %}{% if i == 1 %}{% set z = 9 %}{% endif %}{{ z }}{% endfor %}",
    "{% set ns = namespace(n=0, s='') %}{% for i in l %}{% set ns.n = ns.n + i %}{% set ns.s = ns.s ~ i %}{% endfor %}{{ ns.n }} {{ ns.s }} {{ ns.none }}|", "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a + ns.b }} {{ ns['a'] }} {{ ns }}", "{% set ns = namespace() %}{% set ns._x = 1 %}", "{% set d.x = 1 %}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c = 1, 2 %}{{ c }}", "{% set x %}  in {{ a }}\n{% endset %}[{{ x }}]{% set y | upper | trim %} abc {% endset %}[{{ y }}]", "{% set a, b = [1] %}",
    "{% macro f(x, y=2, z='q') %}{{ x }}{{ y }}{{ z }} {% endmacro %}{{ f(1) }}{{ f(1, 3) }}{{ f(x=1, z=4) }}{{ f() }}{{ f(1, z='w') | upper }}", "{% macro f(n) %}{% if n > 0 %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(4) }}", "{% macro f() %}{{ late }}{{ a }}{% endmacro %}{% set late = 1 %}{{ f() }}", "{% macro f(x) %}{% endmacro %}{{ f(1, 2) }}", "{% macro f(x) %}{% endmacro %}{{ f(y=2) }}", "{%- macro item(k, v) -%}\n  {{ k }}: {{ v }}\n{%- endmacro -%}\n{{ item('a', 1) }}\n{{- item('b', 2) -}}\n", "{% filter upper | replace('A', 'x') %}abc{{ a }}{% endfilter %}", "{% set x = 'out' %}{% macro f(x) %}{{ x }}{% endmacro %}{{ f('in') }}{{ x }}",
    "a{% generation %} b {{ a }}{% endgeneration %}c", "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "{{ strftime_now('%d %b %Y %H:%M') }} {{ strftime_now is defined }}", "{{ raise_exception('Roles must ' + 'alternate') }}", "{% if no %}{{ raise_exception('no') }}{% endif %}ok", "{% for x in l %}{{ x }}{% endfor %}{{ x }}{{ loop }}|", "{% for i in 5 %}{% endfor %}", "{% for a, b in [1] %}{% endfor %}", "{% break %}", "{% if %}{% endif %}", "{{ a ", "{% if a %}", "{% endif %}", "{{ 'a }}", "{{ a b }}", "{% nonsense %}", "{{ [1, 2 }}", "{{ ) }}", "{# x", "{{ }}", "{{ a is defined is true }}", "{{ f(x=1, 2) }}", "{% for x l %}{% endfor %}", "{{ 1 if }}",
    "{% for k, v in d | dictsort %}{{ k }}{% endfor %}{% for c in 'äb' %}[{{ c }}]{% endfor %}{% for k in d %}{{ k }}{% endfor %}", "{% set loop = 3 %}{{ loop }}{% for i in [1] %}{{ loop.index }}{% endfor %}", "{{ m | map(attribute='role') | unique | join }} {{ (m | last).n }} {{ (l | sort)[0] }} {{ m[::-1][0].n }}", "{%- for message in m -%}\n    {%- if loop.first and message.role != 'system' -%}\n        {{- 'S' -}}\n    {%- endif -%}\n    {{ '<' + message['role'] + '>' }}\n{%- endfor %}",
]

CHAT = [{"role": "user", "content": " What is 2+2? "}, {"role": "assistant", "content": "<think>\nsum\n</think>\n\n4"},
        {"role": "user", "content": "And \"3\"+3?"}, {"role": "assistant", "content": "6\n"}]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds <two> numbers", "parameters": {
    "type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number", "description": "größer"}}, "required": ["x"]}}}]
CALLS = [{"role": "user", "content": "add"}, {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "add", "arguments": {"x": 1, "y": 2.5}}}]}, {"role": "tool", "content": "3.5"},
    {"role": "tool", "content": "4"}, {"role": "assistant", "content": "3.5"}]
SYSTEM = [{"role": "system", "content": "Be brief."}]
WRONG = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]

WHOLE = {
    "chatml": """{%- if messages[0].role != 'system' -%}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' -}}
{%- endif -%}
{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>' + '\\n' }}{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}""",
    "llama2": """{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set told = messages[0]['content'] %}{% else %}{% set turns = messages %}{% set told = false %}{% endif %}
{% for turn in turns %}
{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('The roles of a conversation take turns: user, assistant, ...') }}{% endif %}
{% if loop.index0 == 0 and told != false %}{% set said = '<<SYS>>\\n' + told + '\\n<</SYS>>\\n\\n' + turn['content'] %}{% else %}{% set said = turn['content'] %}{% endif %}
{% if turn['role'] == 'user' %}{{ bos_token + '[INST] ' + said.strip() + ' [/INST]' }}{% elif turn['role'] == 'assistant' %}{{ ' ' + said.strip() + ' ' + eos_token }}{% endif %}
{% endfor %}""",
    "llama3": """{{- bos_token }}
{%- set day = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set told = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set told = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none and tools is defined %}{{- 'Environment: ipython\\n' }}{%- endif %}
{{- 'Today: ' + day + '\\n\\n' + told + '<|eot_id|>' }}
{%- for m in messages %}
    {%- if 'tool_calls' in m %}
        {%- if m.tool_calls | length != 1 %}{{- raise_exception('One call at a time!') }}{%- endif %}
        {%- set f = m.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + f.name + '", "parameters": ' }}{{- f.arguments | tojson }}{{- '}<|eot_id|>' }}
    {%- elif m.role == 'tool' or m.role == 'ipython' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}{% if m.content is mapping or m.content is not string %}{{- m.content | tojson }}{% else %}{{- m.content }}{% endif %}{{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
""",
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set told = messages[0]["content"] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{%- set asked = turns | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for m in turns %}
    {%- if not (m.role == "tool" or m.tool_calls is defined) %}
        {%- if (m["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, user and assistant take turns") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for m in turns %}
    {%- if m["role"] == "user" %}
        {%- if loop.last and told is defined %}
            {{- "[INST] " + told + "\\n\\n" + m["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + m["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif m.tool_calls is defined and m.tool_calls | length > 0 %}
        {{- "[TOOL_CALLS] [" }}
        {%- for c in m.tool_calls %}{%- set out = c.function | tojson %}{{- out[:-1] + ', "id": "x"}' }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}{%- endfor %}
    {%- elif m["role"] == "assistant" %}
        {{- " " + m["content"] | trim + eos_token }}
    {%- elif m["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + m.content | string + "}[/TOOL_RESULTS]" }}
    {%- else %}
        {{- raise_exception("Only user, assistant and tool have turns; " + m.role + " was found") }}
    {%- endif %}
{%- endfor %}
""",
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('There is no system role') }}{% endif %}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles take turns') }}{% endif %}{% set who = 'model' if m['role'] == 'assistant' else m['role'] %}{{ '<start_of_turn>' + who + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}""",
    "qwen2.5": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'You are a model.' }}{%- endif %}
    {{- "\\n\\n# Tools\\n\\nSignatures in <tools></tools>:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n{\\"name\\": <function-name>}<|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if (m.role == "user") or (m.role == "system" and not loop.first) or (m.role == "assistant" and not m.tool_calls) %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}
    {%- elif m.role == "assistant" %}
        {{- '<|im_start|>' + m.role }}
        {%- if m.content %}{{- '\\n' + m.content }}{%- endif %}
        {%- for call in m.tool_calls %}
            {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}{{- call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- m.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "qwen3": """{%- set ns = namespace(searching=true, last=messages | length - 1) %}
{%- for m in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.searching and m.role == "user" and m.content is string and not (m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- if m.role == "user" or (m.role == "system" and loop.first) %}
        {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif m.role == "assistant" %}
        {%- set thought = '' %}
        {%- if m.reasoning_content is string %}
            {%- set thought = m.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and thought)) %}
            {{- '<|im_start|>' + m.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + m.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    "phi": """{% for m in messages %}{% if m['role'] in ['system', 'user'] %}{{ '<|' ~ m['role'] ~ '|>' ~ '\\n' ~ m['content'] ~ '<|end|>' ~ '\\n' }}{% elif m['role'] == 'assistant' %}{% generation %}{{ '<|assistant|>\\n' + m['content'] + '<|end|>\\n' }}{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "deepseek": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(first=true, in_tool=false, told='', first_told=true) %}{%- for m in messages %}{%- if m['role'] == 'system' %}{%- if ns.first_told %}{% set ns.told = ns.told + m['content'] %}{% set ns.first_told = false %}{%- else %}{% set ns.told = ns.told + '\\n\\n' + m['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.told }}{%- for m in messages %}{%- if m['role'] == 'user' %}{%- set ns.in_tool = false -%}{{ '<|User|>' + m['content'] }}{%- endif %}{%- if m['role'] == 'assistant' and m['content'] %}{% set content = m['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<|Assistant|>' + content + '<|end|>' }}{%- endif %}{%- if m['role'] == 'tool' %}{%- if not ns.in_tool %}{{ '<|outputs|>' }}{%- set ns.in_tool = true %}{%- endif %}{{ '<|output|>' + m['content'] }}{%- endif %}{%- endfor -%}{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}""",
    "tool macros": """{%- macro kind(spec) %}
    {%- if spec.type == 'object' %}{{- 'dict' }}
    {%- elif spec.enum is defined %}{{- spec.enum | join(' | ') }}
    {%- else %}{{- {'string': 'str', 'number': 'float'}[spec.type] | default('any') }}{%- endif %}
{%- endmacro %}
{%- for tool in tools | default([], true) %}
{{ loop.index }}. {{ tool.function.name }}(
{%- for name, spec in tool.function.parameters.properties | dictsort %}
{{- name }}: {{ kind(spec) }}{{ '' if name in tool.function.parameters.required else ' = none' }}{{ ', ' if not loop.last }}
{%- endfor %})
    {{ tool.function.description | indent(4) }}
{{ tool.function | tojson(indent=2) | indent(2, first=true) }}
{% endfor %}
{{- messages | map(attribute='role') | join(' ') }}""",
}


def cases():
    for template in SMALL:
        yield template, DATA
    for template in WHOLE.values():
        for messages, more in ((CHAT, {}), (SYSTEM + CHAT, {}), (CHAT[:3], {"add_generation_prompt": True}), (CALLS, {"tools": TOOLS}), (WRONG, {}),
                               (SYSTEM + CHAT[:1], {"add_generation_prompt": True, "tools": TOOLS, "enable_thinking": False})):
            yield template, {"messages": messages, "add_generation_prompt": False, "bos_token": "<s>", "eos_token": "</s>", **more}


def main():
    written = []
    for template, context in cases():
        case = {"template": template, "context": context}
        try:
            case["text"] = environment().from_string(template).render(**context)
        except Exception as error:
            case["fails"] = f"{type(error).__name__}: {error}"
        written.append(case)
    path = pathlib.Path(__file__).parent / "jinja_cases.json"
    path.write_text("[\n" + ",\n".join(json.dumps({**case, "context": "DATA"} if case["context"] is DATA else case, ensure_ascii=False)
                                       for case in written).replace('"context": "DATA"', '"context": null') + "\n]\n")
    data = pathlib.Path(__file__).parent / "jinja_context.json"
    data.write_text(json.dumps(DATA, ensure_ascii=False) + "\n")
    print(f"{len(written)} cases, {sum('fails' in case for case in written)} of them fail")


main()
