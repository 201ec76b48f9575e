"""The local page of `diffbfr app`: photos come in by HTTP, one cascade restores the faces of all of them.

`jobs` and `store` hold the photos, `restorer` moves them through reading, restoring and writing,
`face_batches` mixes their faces, `web` speaks HTTP, and `server` begins and ends it. The restoring itself is
that of `pipelines.restoration`, so that the bytes are those of `diffbfr restore`.
"""
