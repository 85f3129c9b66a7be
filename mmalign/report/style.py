"""The report's style sheet: one column of prose, two of charts, light and dark, down to phone width."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #fbfaf7; --card: #ffffff; --ink: #1d1c1a; --muted: #6d6a63; --line: #e4e0d8;
  --accent: #1f5fd6; --base: #9b978d; --chosen: #0b7f6b; --rejected: #c2541b;
  --good: #0b7f4f; --bad: #b3372b; --wash: #eef3fd;
  --sans: ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14151a; --card: #1b1d24; --ink: #eceae4; --muted: #9d9b95; --line: #30323b;
    --accent: #7aa7ff; --base: #8a8880; --chosen: #3fc7ac; --rejected: #f28b4b;
    --good: #4fcf93; --bad: #ff8a7a; --wash: #1a2338;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 var(--sans); }
main, header, footer { max-width: 1080px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 40px; }
.overline { margin: 0; color: var(--muted); font-size: 13px; letter-spacing: .09em; text-transform: uppercase; }
h1 { margin: 6px 0 10px; font-size: clamp(26px, 4.6vw, 40px); line-height: 1.15; letter-spacing: -.02em;
  overflow-wrap: anywhere; text-wrap: balance; }
h2 { margin: 0 0 4px; font-size: 22px; letter-spacing: -.01em; }
h3 { margin: 0; font-size: 15px; }
p { margin: 8px 0; max-width: 68ch; }
.quiet { color: var(--muted); font-size: 14px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 22px 0 0; padding: 12px 0;
  border-block: 1px solid var(--line); font-size: 14px; }
a { color: var(--accent); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; }
section { margin: 44px 0; scroll-margin-top: 16px; }
.verdict { display: grid; grid-template-columns: auto 1fr; gap: 8px 32px; align-items: center; margin: 24px 0 0; }
.rate { font-size: clamp(46px, 9vw, 76px); line-height: 1; font-weight: 650; letter-spacing: -.04em;
  font-variant-numeric: tabular-nums; }
.rate small { display: block; margin-bottom: 8px; color: var(--muted); font-size: 14px; font-weight: 400;
  letter-spacing: 0; }
.scale { position: relative; height: 56px; min-width: 180px; }
.scale i { position: absolute; display: block; }
.scale .track { left: 0; right: 0; top: 20px; height: 2px; background: var(--line); }
.scale .half { left: 50%; top: 8px; height: 26px; width: 1px; background: var(--muted); }
.scale .span { top: 15px; height: 12px; border-radius: 6px; background: var(--accent); opacity: .32; }
.scale .dot { top: 12px; width: 18px; height: 18px; margin-left: -9px; border-radius: 50%; background: var(--accent);
  border: 3px solid var(--page); }
.scale b { position: absolute; top: 36px; font-size: 12px; font-weight: 400; color: var(--muted); white-space: nowrap; }
.scale b.middle { left: 50%; transform: translateX(-50%); }
.scale b.right { right: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 26px 0 0; }
.tile { padding: 14px 16px; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile span { display: block; color: var(--muted); font-size: 13px; }
.tile strong { display: block; font-size: 21px; font-weight: 600; font-variant-numeric: tabular-nums;
  letter-spacing: -.01em; }
.tile em { font-style: normal; font-size: 13px; color: var(--muted); font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 18px;
  margin-top: 18px; }
figure { margin: 0; padding: 16px 16px 12px; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; margin-top: 6px; }
figure svg text { font-family: var(--sans) !important; }
figure p { margin: 4px 0 0; font-size: 13.5px; color: var(--muted); }
.measured { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 18px;
  margin-top: 18px; align-items: start; }
figure.picture { padding: 0; overflow-x: auto; background: #ffffff; }
figure.picture img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figure.picture figcaption { position: sticky; left: 0; padding: 8px 14px; background: var(--card);
  border-top: 1px solid var(--line); font-size: 13.5px; color: var(--muted); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin-top: 2px; font-size: 13px; color: var(--muted); }
.legend span::before { content: ""; display: inline-block; width: 16px; margin-right: 6px; vertical-align: middle;
  border-top: 3px solid var(--key); }
.legend .dashed::before { border-top-style: dashed; }
.strip { display: flex; gap: 14px; margin-top: 16px; padding-bottom: 10px; overflow-x: auto;
  scroll-snap-type: x proximity; }
.strip figure { flex: 0 0 auto; width: min(82vw, 400px); scroll-snap-align: start; }
.note { margin: 16px 0; padding: 12px 16px; max-width: none; background: var(--wash);
  border-left: 3px solid var(--accent); border-radius: 0 10px 10px 0; font-size: 15px; }
.scroll { overflow-x: auto; min-width: 0; border: 1px solid var(--line); border-radius: 12px;
  background: var(--card); }
table { width: 100%; border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 14px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr:last-child > * { border-bottom: 0; }
th { font-weight: 500; }
thead th { color: var(--muted); font-size: 13px; }
th:first-child, td.text { text-align: left; white-space: normal; overflow-wrap: break-word; min-width: 6em; }
td.text { width: 70%; overflow-wrap: anywhere; }
tbody.group th[colspan] { padding-top: 14px; color: var(--muted); font-size: 13px; }
td small, th small { display: block; color: var(--muted); font-size: 12px; }
.good { color: var(--good); } .bad { color: var(--bad); }
details { margin: 12px 0; border: 1px solid var(--line); border-radius: 12px; background: var(--card); }
summary { padding: 10px 16px; cursor: pointer; font-weight: 500; }
details[open] summary { border-bottom: 1px solid var(--line); }
details .scroll { margin: 0; border: 0; }
pre { margin: 0; padding: 14px 16px; overflow-x: auto; font: 13px/1.5 var(--mono); tab-size: 2; }
pre.command { margin: 12px 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
footer { padding-top: 18px; padding-bottom: 40px; color: var(--muted); font-size: 13px; }
@media (max-width: 640px) {
  main, header, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 26px; }
  section { margin: 34px 0; }
  .verdict { grid-template-columns: 1fr; }
  .tiles { grid-template-columns: 1fr 1fr; }
  figure { padding: 12px 10px 10px; }
  th, td { padding: 7px 10px; }
  .before img { min-width: 680px; }
  td.side small { display: none; }
}
@media print { nav { display: none; } figure, .tile, tr { break-inside: avoid; } }
"""
