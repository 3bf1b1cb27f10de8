"""Steps that run on other machines: `executor: ray`.

    inspection  which machines there are, and whether each target has one: `farm.json`, which plans are made from
    parcels     a step ↔ what travels: its command, its inputs by digest, what it has made
    worker      runs a parcel on the machine that has it
    cluster     Ray
    sent        inputs on the cluster, while steps need them
    flights     two drivers do not build the same at once
    executor    the driver's side of a step: sends it, follows it, takes what it has made

Where a step runs changes nothing else: its record, its key, its log and its messages are those of one that ran here.
Nothing is imported here: a worker takes `cluster`, for which its environment need not have what a driver does.
"""
