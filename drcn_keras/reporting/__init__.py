"""The paper's studies and the report: `drcn-study`, `drcn-report`. They need `pip install 'drcn_keras[report]'`."""
