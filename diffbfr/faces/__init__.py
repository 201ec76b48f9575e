"""Faces in whole photos: find, choose, align to the FFHQ frame, and paste back.

`search.FaceSearch` finds the faces of a photo with a `detect.FaceDetector` (`yunet`, `mtcnn`), `choose` says
which are restored and why not, `align` cuts out their frames, and `paste` lays restored frames over the
photo. `photo.find_faces` is the first three in one call for a worker. Only `mtcnn` and `weights` need torch.
"""
