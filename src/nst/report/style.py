"""The page's style: light and dark by the reader's scheme, one column on a phone, nothing fetched."""

STYLE = """
:root { color-scheme: light dark;
  --paper: #fcfcfb; --card: #ffffff; --ink: #1c2128; --mute: #5f6975; --rule: #e3e6ea; --grid: #eceff2;
  --nst: #1f6fd6; --other: #1b8a6b; --alone: #8a929c; --theirs: #c2560c; --note: #fff4e0; --note-ink: #6b4300; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #12161b; --card: #191f26; --ink: #e4e8ec; --mute: #98a3af; --rule: #2b333c; --grid: #262e36;
  --nst: #6aa9ff; --other: #4cc49c; --alone: #8a95a1; --theirs: #ffa25c; --note: #33270f; --note-ink: #f3d9a4; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.2rem 1.2rem 4rem; }
h1 { font-size: clamp(1.5rem, 4.5vw, 2.1rem); line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.015em; }
h2 { font-size: 1.3rem; margin: 3rem 0 .6rem; padding-top: 1.2rem; border-top: 1px solid var(--rule); letter-spacing: -.01em; }
h3 { font-size: 1.02rem; margin: 2rem 0 .3rem; }
p { margin: .35rem 0 .8rem; max-width: 46rem; }
.lead { font-size: 1.08rem; }
.mute, figcaption, .notes { color: var(--mute); font-size: .88rem; }
.banner { background: var(--note); color: var(--note-ink); border-radius: 8px; padding: .7rem 1rem; margin: 1rem 0; overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: .9rem 1rem; margin: .8rem 0; }
.scroll { overflow-x: auto; padding: .3rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .65rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
tr:last-child td { border-bottom: 0; }
th { font-weight: 600; color: var(--mute); font-size: .8rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
td:last-child.words, th:last-child.words { text-align: left; white-space: normal; min-width: 9rem; }
tr.best td { font-weight: 650; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; color: var(--mute); font-size: .85rem; margin: .2rem 0 .6rem; }
.key span::before { content: "●"; margin-right: .35em; color: var(--c, var(--mute)); }
.key .k-theirs::before { content: "◆"; } .key .k-hollow::before { content: "○"; }
.rows { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: 0 1rem; align-items: center; }
.rows .name { font-size: .9rem; }
svg { display: block; font: 11px system-ui, sans-serif; fill: var(--mute); }
svg.strip { width: 100%; height: 28px; overflow: visible; }
svg.scale { height: 18px; }
svg.plot { width: 100%; height: auto; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(13rem, 46%), 1fr)); gap: .9rem 1rem; }
.panels figure, .pair figure { margin: 0; }
.panels figcaption { color: var(--ink); font-weight: 600; font-size: .84rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; }
.pair img { width: 100%; height: auto; border-radius: 6px; display: block; }
.nst { --c: var(--nst); } .other { --c: var(--other); } .alone { --c: var(--alone); } .theirs { --c: var(--theirs); }
circle, .theirs { fill: var(--c); } .line, .whisker { stroke: var(--c); } polygon { fill: var(--c); }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .band { opacity: .2; } .whisker { stroke-width: 2; opacity: .75; }
.faint { opacity: .38; } .hollow { fill: var(--card); stroke: var(--c); stroke-width: 1.8; } .point { opacity: .72; }
text.theirs { font-size: 14px; } .grid { stroke: var(--grid); stroke-width: 1; }
details { margin: .5rem 0; } summary { cursor: pointer; }
code, pre { font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
code { overflow-wrap: anywhere; } pre { overflow: auto; max-height: 24rem; margin: .5rem 0 0; }
ul { padding-left: 1.1rem; } li { margin: .25rem 0; }
@media (max-width: 34rem) {
  main { padding: 1.3rem .9rem 3rem; } .card { padding: .7rem .75rem; }
  .rows { grid-template-columns: 1fr; } .rows .name { margin-top: .45rem; } .rows .corner { display: none; } }
@media print { .scroll { overflow: visible; } details > * { display: block; } }
"""
