"""Loops of stages: generate, judge, select, train, again, and whatever else a recipe lists.

ledger     what was done, one verified line per step
calls      each model or judge call, asked once; made by caller, through gate, of a server
stage      what a stage is, and the check that every stage finds what it reads
place      a stage's folder, key and seed in a round
engine     runs the stages of all rounds; running it again is resuming
retention  which old artefacts are removed, and how
signals    SIGTERM ends a loop within 30 seconds

Nothing here knows a stage by name. Importing these modules loads pydantic and nothing heavier.
"""
