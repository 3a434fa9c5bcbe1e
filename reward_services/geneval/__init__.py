"""GenEval: does the picture show the objects, counts, colors and relations its prompt asks for?

``verdict`` and ``reward`` are pure functions over detections; ``detector`` says what a detector is, ``shapes`` is
the one for the tiny world, ``colors`` names an object's color, ``scorer`` puts them behind the HTTP contract.
"""
