"""The part of a policy that other systems can hold: NetworkPolicy, Cilium, Istio.

Pure compilers: a Policy comes in, Kubernetes objects and a list of what they do not say come out. They never permit
what decide() would not permit without a scope; what a system cannot tell apart is left out, and named.
"""
