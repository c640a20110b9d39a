"""The study: what containerd, CRI-O and Docker mean. Bytes in, plan out; nothing here touches a node."""
