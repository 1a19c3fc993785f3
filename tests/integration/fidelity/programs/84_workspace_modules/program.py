MINE = 'program of the workspace'
