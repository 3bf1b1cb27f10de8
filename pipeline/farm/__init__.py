"""Steps that run on other machines: `executor: ray`.

    inspection  the cluster's machines and the host of each target, in `farm.json`, which plans use
    parcels     a step's command, its inputs by digest and its results, as they travel
    worker      the run of a parcel, on the worker's side
    cluster     a Ray cluster: its nodes, tasks and objects
    ray_calls   the calls of Ray, with its errors translated
    sent        inputs on the cluster, for as long as a step needs them
    flights     leases of keys, so that two drivers do not build the same at once
    incoming    a worker's results, received and checked
    executor    the driver's side of a step: it sends the step, follows it and takes its results

The place of a step changes nothing else. Its record, its key, its log and its messages are those of a local run.
This module imports nothing: workers import only `cluster`, and their environment may lack a driver's packages.
"""
