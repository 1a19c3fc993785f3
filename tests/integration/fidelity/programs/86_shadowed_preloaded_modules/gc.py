MARK = 'the workspace shadows gc'
