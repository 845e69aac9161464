"""`python -m presto_models evaluate control`: one table of all ways to control a model, for every task.

``command`` is the way in; ``rows`` reads what is to be measured, ``tasks`` and ``methods`` are what a row combines;
``making`` makes one run, ``runs`` keeps it; ``summary``, ``race`` and ``hearing`` measure what is there; ``table`` puts
it together, ``report`` and ``figure`` show it.
"""
