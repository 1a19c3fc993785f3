MINE = 'codec of the workspace'
