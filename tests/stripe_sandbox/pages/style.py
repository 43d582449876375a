"""How the pages look: one sheet, light and dark, from 400 px up. Every text has a contrast of 4.5 or more."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1f26; --quiet: #57606a; --line: #d0d7de; --well: #f6f8fa;
  --accent: #0b57d0; --on-accent: #fff; --good: #116329; --bad: #b3261e; --wait: #7d4e00 }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --ink: #e6edf3; --quiet: #9da7b3; --line: #3d444d;
  --well: #1c222a; --accent: #8ab4f8; --on-accent: #10151c; --good: #56d364; --bad: #ff8b81; --wait: #e3b341 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; background: var(--paper); color: var(--ink); max-width: 76rem;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: break-word }
body.narrow { max-width: 36rem; padding-top: 2.5rem } body.medium { max-width: 52rem }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; line-height: 1.25 }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem; scroll-margin-top: 1rem }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem } .card h3 { margin: 0 0 .2rem }
p { margin: .4rem 0 } a { color: var(--accent) }
.quiet, .empty { color: var(--quiet) } .about { color: var(--quiet); margin: 0 0 .6rem; max-width: 48rem }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding: 0; margin: .8rem 0 0 }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px }
.notice { border: 1px solid var(--line); border-left: .35rem solid var(--accent); background: var(--well);
  border-radius: .4rem; padding: .6rem .9rem; margin: 1rem 0 }
.notice.bad { border-left-color: var(--bad) } .notice.good { border-left-color: var(--good) }
table { border-collapse: collapse; width: 100% }
th { text-align: left; font-weight: 600; font-size: .85rem; color: var(--quiet) }
th, td { padding: .5rem .9rem .5rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.number, th.number { text-align: right; padding-right: 0; white-space: nowrap; font-variant-numeric: tabular-nums }
tr.sum td, tr.sum th { border-bottom: 0; font-weight: 600; font-size: 1rem; color: inherit }
code, .id { font: .85em ui-monospace, monospace; overflow-wrap: anywhere } td .id { color: var(--quiet) }
.status { font-weight: 600; white-space: nowrap }
.good .word, .status.good { color: var(--good) } .status.bad { color: var(--bad) } .status.wait { color: var(--wait) }
form.inline { display: inline } form { margin: 0 }
button, .button { font: inherit; font-size: .9rem; padding: .3rem .75rem; margin: 0 .3rem .35rem 0; min-height: 2rem;
  border: 1px solid var(--quiet); border-radius: .4rem; background: var(--paper); color: var(--ink); cursor: pointer;
  text-decoration: none; display: inline-block }
button:hover, .button:hover { border-color: var(--accent); color: var(--accent) }
button.main { background: var(--accent); border-color: var(--accent); color: var(--on-accent); font-size: 1rem;
  padding: .5rem 1.3rem; font-weight: 600 }
button.main:hover { color: var(--on-accent); text-decoration: underline }
button.danger { color: var(--bad); border-color: var(--bad) }
label, legend { font-weight: 600 } .hint { display: block; font-weight: 400; font-size: .85rem; color: var(--quiet) }
input, select { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--quiet);
  border-radius: .4rem; padding: .35rem .5rem; width: 100%; max-width: 34rem }
input[type=number], input[type=datetime-local] { max-width: 15rem } .knob input[type=number] { max-width: none }
input[type=radio] { width: auto; margin: .3rem .5rem 0 0; accent-color: var(--accent) }
.field { margin: .7rem 0 } .field label { display: block }
fieldset { border: 1px solid var(--line); border-radius: .5rem; padding: .4rem .9rem .7rem; margin: 1rem 0 }
.choice { display: flex; align-items: flex-start; padding: .3rem 0 } .choice label { font-weight: 400 }
.card { border: 1px solid var(--line); border-radius: .6rem; padding: .9rem 1rem; margin: 0 0 1rem }
details { border-top: 1px solid var(--line); padding: .5rem 0 } summary { cursor: pointer; font-weight: 600 }
.knobs { display: grid; grid-template-columns: repeat(auto-fill, minmax(16.5rem, 1fr)); gap: 1rem }
.knob { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; display: flex;
  flex-direction: column }
.knob input, .knob select { margin-top: auto } .knob .hint { margin: .1rem 0 .5rem }
.knob.turned { border: 2px solid var(--wait) } .turned-word { color: var(--wait); font-size: .8rem; float: right }
.row { display: flex; flex-wrap: wrap; gap: .5rem; align-items: end } .row .field { margin: 0 }
@media (max-width: 46rem) {
  table.stack thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
  table.stack, table.stack tbody, table.stack tr, table.stack td { display: block }
  table.stack tr { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .8rem; margin-bottom: .8rem }
  table.stack td { border: 0; padding: .15rem 0; text-align: left } table.stack td:empty { display: none }
  table.stack td[data-head]::before { content: attr(data-head) ": "; color: var(--quiet); font-size: .85rem }
  body.narrow { padding-top: 1.25rem } button { min-height: 2.4rem }
}
"""
