# A step for BEE that runs in a lazily mounted image: docs/bee.md. No builder is started and nothing is copied.
class: CommandLineTool
cwlVersion: v1.2
baseCommand: [gcc, --version]
hints:
  DockerRequirement:
    beeflow:useContainer: /skimfs/images.example.org/docker.io/library/gcc:13.sqfs
stdout: version.txt
inputs: {}
outputs:
  version:
    type: stdout
