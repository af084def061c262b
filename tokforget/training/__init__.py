"""
Training: the joint loop of policy and reconstructor, the reconstructor alone, and a policy trained from a reader.
"""
