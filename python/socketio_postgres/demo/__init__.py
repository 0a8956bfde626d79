"""A chat on two servers that know each other only through PostgreSQL: `python -m socketio_postgres demo`.

- run.py starts PostgreSQL, server.py twice and emitter.py; prints what crosses.
- server.py, a process: chat server, relays what browsers send, serves page.html.
- emitter.py, a process without a server: sends the time to everybody.
- check.py, for `--check`: real clients on both servers verify what arrives.
- client.py: the Socket.IO client that run.py and check.py use.
- process.py, shared by the processes: settings from, and an end with, the one that started them.
"""
