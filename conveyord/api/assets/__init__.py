"""Files that a browser is given. `swagger-ui/`: of npm's swagger-ui-dist 5.35.0 (Apache-2.0), as they came."""
