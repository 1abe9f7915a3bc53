package peers

// DumpBucket lets tests choose ids that meet in a bucket.
var DumpBucket = dumpBucket
