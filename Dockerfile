# The image of a host of the fleet: docker build --tag copilotfleet:0.2.0 .
# `copilotfleet deploy kubernetes` and `deploy compose` rely on its paths and its user (deploy/).

# The digest fixes the content of the base image, for each processor. Dependabot proposes newer ones.
FROM node:24.21.0-trixie-slim@sha256:8ec5d7557396cfe32d21c3f9c13072355ceab22b584578ca4bb28af31120cffe AS base

FROM base AS build
WORKDIR /src
# The lock file decides the versions. It comes first, so that a change of the source does not install again.
COPY package.json package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY . .
RUN npm pack --pack-destination /tmp
# The image holds only the published package and the dependencies that it needs to run.
WORKDIR /opt/copilotfleet
RUN tar -xzf /tmp/copilotfleet-*.tgz --strip-components=1 && cp /src/package-lock.json .
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund
# In the image, nobody may write beside the script. So a first command writes the code cache here.
RUN COPILOTFLEET_HOME=/tmp/state node bin/run.js ps --json
# The list of all npm packages in the image. npm makes none while package.json names packages that are missing. The release
# workflow adds a list of the Debian packages.
RUN npm pkg delete devDependencies && npm sbom --sbom-format=cyclonedx > sbom.cdx.json && rm package-lock.json

FROM base
# tini reaps what servers and commands leave behind. The sandbox uses setpriv (of util-linux) or bubblewrap where its own
# launcher is not enough. Add what your sessions' tools need, such as git.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends bubblewrap ca-certificates tini util-linux \
 && rm -rf /var/lib/apt/lists/*
# Volumes take owner and mode of these folders when they are new.
RUN groupadd --gid 10001 copilotfleet \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp copilotfleet \
 && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/copilotfleet /var/lib/copilotfleet-shared
COPY --from=build /opt/copilotfleet /opt/copilotfleet
RUN ln -s /opt/copilotfleet/bin/run.js /usr/local/bin/copilotfleet
ENV NODE_ENV=production \
    HOME=/tmp \
    XDG_CONFIG_HOME=/etc \
    COPILOTFLEET_HOME=/var/lib/copilotfleet/state \
    COPILOTFLEET_SERVE_LISTEN=0.0.0.0:4300 \
    COPILOTFLEET_SERVE_METRICS=0.0.0.0:9464
USER 10001:10001
WORKDIR /var/lib/copilotfleet
EXPOSE 4300 4380 9464
ENTRYPOINT ["/usr/bin/tini", "--", "copilotfleet"]
CMD ["serve"]
