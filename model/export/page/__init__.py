"""One HTML file that writes with a model by itself: offline, without a server, in any browser.

page.html page.css page.js   what is seen
engine.js                    the arithmetic: WebAssembly, or the same in plain JavaScript
step.c step.wasm.base64      the step for WebAssembly, built by `python -m model.export.page.build`
render.py                    puts a model into the page
"""
