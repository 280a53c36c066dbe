"""From a YAML suite to its cases.

`loading` does all of it, with `files` (where suites lie), `matrix`, `exceptions`, `checks` (what the schema in
`specs` cannot say) and `distinct` (no case twice).
"""
