"""The simulated world of the sandbox.

Owns users, posts, media and tokens (`world`), the world's clock (`clock`), X's rate limits (`rate_limits`), unfinished
uploads (`uploads`), the switches that change X's behaviour (`switches`), the people and posts that exist from the start
(`seed`) or that a test plants (`fixtures`), and the one object that holds all of it and saves it (`simulator`).

Must never answer HTTP: endpoints read and change this state, and render it.
"""
