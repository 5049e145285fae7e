# The image of a host of the fleet: docker build --tag copilotfleet:0.2.0 .
# `copilotfleet deploy kubernetes` and `deploy compose` rely on its paths and its user (src/deploy/container.ts).

FROM node:20-bookworm-slim AS build
WORKDIR /src
# The lock file decides the versions. It comes first, so that a change of the source does not install again.
COPY package.json package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY . .
RUN npm pack --pack-destination /tmp
# The image holds only the published package and the dependencies that it needs to run.
RUN mkdir /app && tar -xzf /tmp/copilotfleet-*.tgz -C /app --strip-components=1 && cp package-lock.json /app/
RUN cd /app && npm ci --omit=dev --ignore-scripts --no-audit --no-fund && rm package-lock.json

FROM node:20-bookworm-slim
# tini reaps what servers and commands leave behind. Add what your sessions' tools need, such as git.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates tini \
 && rm -rf /var/lib/apt/lists/*
# Volumes take owner and mode of these folders when they are new.
RUN groupadd --gid 10001 copilotfleet \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp copilotfleet \
 && install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/copilotfleet /var/lib/copilotfleet-shared
COPY --from=build /app /opt/copilotfleet
RUN ln -s /opt/copilotfleet/bin/run.js /usr/local/bin/copilotfleet
ENV NODE_ENV=production \
    HOME=/tmp \
    XDG_CONFIG_HOME=/etc \
    COPILOTFLEET_HOME=/var/lib/copilotfleet/state \
    COPILOTFLEET_SERVE_LISTEN=0.0.0.0:4300 \
    COPILOTFLEET_SERVE_METRICS=0.0.0.0:9464
USER 10001:10001
WORKDIR /var/lib/copilotfleet
EXPOSE 4300 9464
ENTRYPOINT ["/usr/bin/tini", "--", "copilotfleet"]
CMD ["serve"]
