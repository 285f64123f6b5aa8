"""How the page looks: readable on a phone, in light and in dark."""

POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'"
)
STYLE = """
:root { --paper: #fbfaf8; --card: #fff; --ink: #1d1b26; --soft: #635f70; --rule: #dedae4; --run: #6a2fb5;
  --recorded: #e09a2b; --band: #e09a2b55; --good: #176b3a; --good-bg: #e3f4e9; --bad: #a8182b; --bad-bg: #fbe6e8;
  --unsure: #7a5600; --unsure-bg: #fbf1d9; --k0: #6a2fb5; --k1: #c0417f; --k2: #d77a1c; --k3: #2a7f9e; }
@media (prefers-color-scheme: dark) { :root { --paper: #15131c; --card: #1f1c29; --ink: #eeebf5; --soft: #aaa4ba;
  --rule: #383347; --run: #bb9bf5; --recorded: #e5a84b; --band: #e5a84b55; --good: #83dba6; --good-bg: #16321f;
  --bad: #ff9aa6; --bad-bg: #431820; --unsure: #f0cd7d; --unsure-bg: #3a2e10; --k0: #bb9bf5; --k1: #f08ab8;
  --k2: #f0ae66; --k3: #74c7e3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 82rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { margin: .1rem 0; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 0 0 .6rem; font-size: 1.2rem; }
h3 { margin: 0; font-size: 1rem; }
p { margin: .4rem 0; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .86em; }
pre { margin: .4rem 0; padding: .6rem; overflow-x: auto; background: var(--paper); border-radius: .4rem;
  overflow-wrap: normal; }
section, footer { margin: 1rem 0; padding: 1rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: .7rem; }
.over, .note, figcaption, dt { color: var(--soft); font-size: .9rem; }
.over { margin: 0; }
.badge { display: inline-block; margin: 0 0 .4rem; padding: .3rem .8rem; border-radius: 2rem; font-weight: 700;
  font-size: 1.15rem; }
.good .badge { color: var(--good); background: var(--good-bg); }
.bad .badge { color: var(--bad); background: var(--bad-bg); }
.unsure .badge { color: var(--unsure); background: var(--unsure-bg); }
.verdict.good { border-left: .4rem solid var(--good); }
.verdict.bad { border-left: .4rem solid var(--bad); }
.verdict.unsure { border-left: .4rem solid var(--unsure); }
a { color: inherit; text-decoration-thickness: .06em; text-underline-offset: .2em; }
.red { color: var(--bad); font-weight: 600; }
.gate { display: flex; }
.gate > span { flex: none; width: 1.4rem; font-weight: 700; }
.gate b { font-weight: 600; }
.gate.passed > span { color: var(--good); }
.gate.failed, .gate.error { color: var(--bad); }
.gate.skipped { color: var(--unsure); }
.gate:target { outline: .15rem solid var(--run); outline-offset: .2rem; border-radius: .2rem; }
.reason { margin: 0 0 .2rem; }
section > .failed, section > .error, section > .skipped { margin-bottom: 1rem; padding-left: .8rem;
  border-left: .2rem solid var(--bad); }
section > .skipped { border-color: var(--unsure); }
.charts, .clips { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1rem; }
figure, article { margin: 0; min-width: 0; }
figure { max-width: 40rem; }
svg { display: block; width: 100%; height: auto; }
.grid { stroke: var(--rule); stroke-width: 1; }
.tick { fill: var(--soft); font-size: 12px; }
.end { text-anchor: end; } .mid { text-anchor: middle; }
polyline { fill: none; stroke-linejoin: round; }
.run { stroke: var(--run); stroke-width: 1.8; } circle.run { fill: var(--run); stroke: none; }
.recorded { stroke: var(--recorded); stroke-width: 6; stroke-opacity: .6; stroke-linecap: round; }
polygon.band { fill: var(--band); } line.band { stroke: var(--band); stroke-width: 8; }
.k0 { stroke: var(--k0); stroke-width: 1.8; } .k1 { stroke: var(--k1); stroke-width: 1.8; stroke-dasharray: 7 3; }
.k2 { stroke: var(--k2); stroke-width: 1.8; stroke-dasharray: 2 2; } .k3 { stroke: var(--k3); stroke-width: 1.8;
  stroke-dasharray: 9 3 2 3; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 0 0 .3rem; padding: 0; list-style: none;
  font-size: .9rem; }
.legend li { display: flex; align-items: center; gap: .4rem; }
.legend .key { flex: none; width: 28px; height: 8px; }
audio { display: block; width: 100%; margin: .4rem 0; }
img { display: block; width: 100%; height: auto; border-radius: .4rem; }
dl { margin: .4rem 0 0; }
dl div { display: grid; grid-template-columns: minmax(6rem, 11rem) minmax(0, 1fr); gap: .2rem 1rem;
  padding: .2rem 0; border-top: 1px solid var(--rule); }
dd { margin: 0; min-width: 0; }
footer dl { columns: 30rem; column-gap: 2rem; }
footer dl div { break-inside: avoid; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; color: var(--soft); padding-bottom: .2rem; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid var(--rule); white-space: nowrap; }
table.gates { width: 100%; table-layout: fixed; }
.gates th, .gates td { white-space: normal; vertical-align: top; overflow-wrap: anywhere; }
.gates th:nth-child(1) { width: 28%; } .gates th:nth-child(2) { width: 37%; }
.gates th:nth-child(4), .gates td:nth-child(4) { width: 4.5rem; padding-right: 0; text-align: right; }
summary { cursor: pointer; color: var(--soft); }
details[open] > summary { margin-bottom: .3rem; }
@media (max-width: 40rem) { body { padding: .6rem; } section, footer { padding: .8rem; }
  dl div { grid-template-columns: minmax(0, 1fr); gap: 0; }
  table, caption, tbody, tr, td { display: block; width: auto; }
  thead { display: none; }
  tr { padding: .4rem 0; border-bottom: 1px solid var(--rule); }
  td, .gates td:nth-child(4) { display: grid; grid-template-columns: 5.2rem minmax(0, 1fr); width: auto; padding: 0;
    border: 0; white-space: normal; overflow-wrap: anywhere; text-align: left; }
  td::before { content: attr(data-label); color: var(--soft); }
  td:empty, .gates td:first-child::before { display: none; }
  .gates td:first-child { display: block; } }
"""
