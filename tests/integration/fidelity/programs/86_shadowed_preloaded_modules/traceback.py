MARK = 'the workspace shadows traceback'
