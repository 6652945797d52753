"""The contract with callers, as plain data.

Owns the shape of every request and response: `Call` and `Answer`, the strict reading of JSON bodies, queries and forms,
the closed set of reasons with their messages, the dialect of older clients, the frame of HTML pages for people, and the
prefix of all paths.

Must never know a socket, a framework, the store or X: the command line, which speaks the contract without HTTP,
imports it too. `errors.render` is the only writer of an error.

Read in this order: `messages` (Call, Answer), `errors` (PROBLEMS), `body` (JSON, queries, models), `forms` (urlencoded
and multipart), `relay_dialect` (the older form of requests and responses), `web_page` (the frame of every page).
"""
