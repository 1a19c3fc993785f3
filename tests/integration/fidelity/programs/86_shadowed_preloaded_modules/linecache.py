MARK = 'the workspace shadows linecache'
