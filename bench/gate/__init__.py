"""`python -m bench gate`: is this checkout slower than another commit?  docs/bench/gate.md

rule.py      when a change counts: screening, confirmation, correction for many rows
subjects.py  what is timed
worker.py    one side: a process that times what it is told
pair.py      two workers, one a commit, timed in turn
checkout.py  another commit's packages, built
run.py       the command
simulate.py  how often the rule is wrong, on recorded noise
"""
