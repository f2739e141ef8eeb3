"""The page's look and its few lines of script, kept in the page so that it needs nothing else. Pure."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --bg: #fbfbfa; --fg: #1d2021; --dim: #5c6166; --line: #d9dcdf; --card: #fff;
  --good: #116a34; --goodbg: #e3f4e8; --warn: #7a4d00; --warnbg: #fdf1d6; --bad: #a3141f; --badbg: #fde5e6; }
@media (prefers-color-scheme: dark) { :root { --bg: #15171a; --fg: #e8eaed; --dim: #a3abb3; --line: #343a40;
  --card: #1d2024; --good: #7fdc9c; --goodbg: #12301d; --warn: #f3c969; --warnbg: #33280d; --bad: #ff9aa0;
  --badbg: #3d1518; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.3rem; margin: .2rem 0 1rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .5rem; }
.dim, footer { color: var(--dim); } .num { font-variant-numeric: tabular-nums; white-space: nowrap; }
.banner { border-left: .4rem solid; border-radius: .3rem; padding: .7rem 1rem; margin: 0 0 .7rem; }
.banner strong { display: block; font-size: 1.15rem; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
.banner.good { background: var(--goodbg); } .banner.warn { background: var(--warnbg); }
.banner.bad { background: var(--badbg); }
table { width: 100%; border-collapse: collapse; background: var(--card); border: 1px solid var(--line); }
th, td { text-align: left; vertical-align: top; padding: .45rem .6rem; border-bottom: 1px solid var(--line); }
thead th { font-size: .85rem; color: var(--dim); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
a { color: inherit; } a:focus-visible { outline: 2px solid; outline-offset: 2px; }
footer { font-size: .85rem; margin-top: 2rem; } footer a { margin-right: .8rem; }
#live { font-size: .85rem; }
@media (max-width: 40rem) {
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, tbody, tr, td, tbody th { display: block; } tr { border-bottom: 2px solid var(--line); padding: .4rem 0; }
  td, tbody th { border: 0; padding: .1rem .6rem; }
  td[data-label]::before { content: attr(data-label) ": "; color: var(--dim); }
  td:empty { display: none; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; }
}
"""

# Only the text that changes is replaced, and the banner is the one live region: a screen reader hears a change of
# primary, not every byte of lag.
SCRIPT = """
(() => {
  const live = document.getElementById("live");
  const source = new EventSource("events");
  const say = text => { if (live.textContent !== text) live.textContent = text; };
  source.onmessage = event => {
    for (const [id, html] of Object.entries(JSON.parse(event.data))) {
      const part = document.getElementById(id);
      if (part && part.innerHTML !== html) part.innerHTML = html;
    }
    say("live");
  };
  source.onerror = () => say("this node does not answer; what you see is old");
})();
"""
