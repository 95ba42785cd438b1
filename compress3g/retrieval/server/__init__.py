"""`compress3g index serve`: an index as a page in the browser and four addresses for programs.

`reader.py` is the index as several threads see it, `pictures.py` what it shows of documents,
`app.py` the addresses, `run.py` the socket and the process, `static/` the page.
"""
