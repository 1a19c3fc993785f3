MARK = 'the workspace shadows resource'
