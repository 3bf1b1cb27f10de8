"""Output of Nsight Systems."""

from __future__ import annotations

# As Nsight Systems 2024.4 writes it, after what it says of its own work.
SUMMARY = """Generating SQLite file profile.sqlite from profile.nsys-rep
Processing [profile.sqlite] with [/opt/nvidia/nsight-systems/reports/cuda_gpu_kern_sum.py]...

Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
75.0,3000000,20,150000.0,150000.0,149000,151000,500.0,"sm90_xmma_fprop<half, (int)3>"
25.0,1000000,40,25000.0,25000.0,24000,26000,100.0,copy
"""
