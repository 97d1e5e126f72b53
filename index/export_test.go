package index

// BuildSplit is BuildImage with other limits, so that a small image has nested catalogs.
func BuildSplit(root *Entry, put Put, above, least int) (ImageRef, error) {
	return buildImage(root, ImageInfo{}, nil, put, above, least)
}
