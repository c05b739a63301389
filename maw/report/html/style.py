"""The page's look: one style sheet, no font and no picture from elsewhere, light and dark by the reader's setting.

Series colours are Okabe and Ito's and Tol's, which people with any colour vision can tell apart, lighter on dark.
"""

from __future__ import annotations

from maw.report.series import COLOURS

_DARK = ("#56b4e9", "#ff9a4d", "#bbbbbb", "#f0e442", "#ff8ac5", "#a8a8ff", "#ee9999", "#8ce08c", "#3fcf9f", "#ee99cc")


def _colours(colours: tuple[str, ...]) -> str:
    return "".join(f"--s{number}:{colour};" for number, colour in enumerate(colours))


def _series() -> str:
    return "".join(
        f".s{number}{{--c:var(--s{number})}}" for number in range(len(COLOURS))
    )  # each element of a series takes its colour from --c


STYLE = (
    ":root{color-scheme:light dark;--ink:#1c1c1c;--soft:#545454;--page:#ffffff;--panel:#f4f5f7;--rule:#c9ccd1;"
    f"--link:#0b57a4;--edge:#0003;--good:#0b6b3a;--bad:#a32020;{_colours(COLOURS)}}}"
    "@media (prefers-color-scheme:dark){:root{--ink:#ececec;--soft:#b4b8bd;--page:#16181b;--panel:#22252a;"
    f"--rule:#474c53;--link:#8cc4ff;--edge:#fff3;--good:#7fd6a2;--bad:#ff9c9c;{_colours(_DARK)}}}}}"
    f"{_series()}"
    """
*{box-sizing:border-box}
html{font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
body{margin:0;color:var(--ink);background:var(--page)}
body>header,main,body>nav,body>footer{max-width:62rem;margin:0 auto;padding:0 1rem}
h1{font-size:1.6rem;line-height:1.2;margin:1.5rem 0 .25rem}
h2{font-size:1.35rem;margin:2.5rem 0 .5rem;padding-top:.75rem;border-top:2px solid var(--rule)}
h3{font-size:1.1rem;margin:1.75rem 0 .5rem}
h4{font-size:1rem;margin:1.25rem 0 .25rem}
h5,h6{font-size:.92rem;margin:.75rem 0 .25rem}
p,dl,ul{margin:.5rem 0}
a{color:var(--link)}
.skip{position:absolute;left:-999rem}
.skip:focus{left:.5rem;top:.5rem;padding:.5rem;background:var(--page);border:2px solid var(--link)}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
.soft,caption,figcaption,dt{color:var(--soft)}
.answer{background:var(--panel);border-left:6px solid var(--link);padding:.75rem 1rem;margin:1rem 0;font-size:1.1rem}
.answer p{margin:.35rem 0}
.good{color:var(--good);font-weight:600}
.bad{color:var(--bad);font-weight:600}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;padding:0;list-style:none}
.scroll{overflow-x:auto;margin:.75rem 0;background:linear-gradient(to right,var(--page) 1rem,transparent) local,
linear-gradient(to left,var(--page) 1rem,transparent) right local,linear-gradient(to right,var(--edge),transparent),
linear-gradient(to left,var(--edge),transparent) right;background-size:2.5rem 100%,2.5rem 100%,.8rem 100%,.8rem 100%;
background-repeat:no-repeat}
details .scroll{background:none}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;min-width:100%}
caption{text-align:left;padding:.25rem 0;font-size:.92rem}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}
thead th{border-bottom:2px solid var(--rule);font-weight:600}
tbody th{font-weight:400;min-width:6.5rem}
caption span{display:inline-block;max-width:min(58rem,calc(100vw - 3rem))}
th.n,td.n{text-align:right}
td.n{white-space:nowrap}
thead th{vertical-align:bottom}
td .soft{font-size:.82rem;display:block}
sup{font-size:.75em;line-height:0}
figure{margin:1rem 0;max-width:31rem}
figcaption{font-size:.92rem}
figure svg{width:100%;height:auto;display:block}
svg text{fill:var(--ink);font:13px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif}
svg .tick{fill:var(--soft)}
svg .middle{text-anchor:middle}
svg .end{text-anchor:end}
svg .grid{stroke:var(--rule);stroke-width:1}
svg .whisker{stroke:var(--ink);stroke-width:1.5}
svg .heat{fill:var(--c)}
svg .frame{fill:none;stroke:var(--rule)}
svg .picked{fill:none;stroke:var(--ink);stroke-width:1.5}
svg .bar{fill:var(--c);fill-opacity:.75}
svg .line{fill:none;stroke:var(--c);stroke-width:2}
svg .mark{fill:var(--page);stroke:var(--c);stroke-width:1.75}
svg.swatch,figure svg.swatch{display:inline-block;width:26px;height:12px;vertical-align:middle}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;list-style:none;padding:0;font-size:.92rem}
details{margin:.5rem 0;border:1px solid var(--rule);border-radius:4px;padding:.35rem .75rem;background:var(--panel)}
summary{cursor:pointer;padding:.2rem 0}
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(18rem,100%),1fr));gap:0 1.25rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(25rem,100%),1fr));gap:0 1.25rem}
.sides>div{min-width:0;overflow-wrap:anywhere}
.sides ol{padding-left:1.5rem;margin:.25rem 0}
.passage{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.88rem;background:var(--page);padding:.4rem .6rem;
border-left:4px solid var(--rule);margin:.25rem 0 .75rem}
.passage.relevant{border-left-color:var(--good)}
.query{font-weight:600;white-space:pre-wrap;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:minmax(8rem,14rem) minmax(0,1fr);gap:.15rem .75rem}
dd{margin:0;overflow-wrap:anywhere}
code{overflow-wrap:anywhere;font-size:.92em}
.word{display:inline-block;max-width:100%}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--panel);padding:.6rem .8rem;border-radius:4px}
body>footer{margin-top:3rem;padding-bottom:2rem;color:var(--soft)}
@media (max-width:34rem){dl{grid-template-columns:1fr}dd{margin-bottom:.35rem}h1{font-size:1.35rem}
th,td{padding:.3rem .25rem}tbody th{min-width:6rem}td .soft{white-space:normal}}
@media (min-width:50rem){tbody th{white-space:nowrap}}
@media print{details{border:0}.scroll{overflow:visible}}
"""
)
