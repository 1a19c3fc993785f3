MARK = 'the workspace shadows site'
