/** The keys that no longer exist, each with a sentence about what replaces it. `*` stands for one part of a key. */
export const REMOVED: Readonly<Record<string, string>> = {
  "sandbox.tools": "sandbox.mode restricts each server with all tools that it runs.",
  "pool.warm": "A shared server starts when a user needs it.",
  "runtime.idleTimeout": "The runtime decides when it unloads idle sessions.",
  "health.session": "Each probe is a ping.",
  "health.startup": "A server may take 30 s to start.",
  "health.stable": "A server's crashes are forgotten when it has run for a minute.",
  "health.backoff": "The delay before restarts begins with a second and doubles each time, up to a minute.",
  "recycle.pause": "Between two attempts to replace a server, serve waits a minute.",
  "recycle.maxSessions": "recycle.maxMemory and recycle.maxAge limit a server.",
  "serve.logMaxSize": "A server's log is rotated at 10 MB.",
  "serve.logFiles": "For each server, serve keeps three rotated logs.",
  "serve.gcInterval": "serve runs gc every hour.",
  modelGateway: "The model gateway is always on.",
  "events.maxSize": "The audit log of a host takes at most 256 MB.",
  "limits.*.requestsInFlight": "A user may have 2000 unanswered requests, and all users together 20000.",
  "limits.*.unreadBytes": "The front door holds 64 MB for a user, and 512 MB for all users together.",
  "limits.total.sessions": "limits.default.sessions limits the sessions of each user.",
  "sandbox.unixSockets": 'Under sandbox.mode "bwrap", servers may use Unix sockets.',
  "host.peers": "A host proves itself by its TLS certificate and by the key of the records.",
  "host.ca": "A host proves itself by its TLS certificate and by the key of the records.",
  "auth.githubTokenEnv": 'Set auth.githubToken to {"env": "NAME"}.',
  "auth.githubTokenFile": 'Set auth.githubToken to {"file": "PATH"}.',
  "auth.githubTokenCommand": 'Set auth.githubToken to {"command": "…"}.',
  "auth.githubApp.privateKeyFile": 'Set auth.githubApp.privateKey to {"file": "PATH"}.',
  "provider.apiKeyEnv": 'Set provider.apiKey to {"env": "NAME"}.',
  "provider.apiKeyFile": 'Set provider.apiKey to {"file": "PATH"}.',
  "provider.apiKeyCommand": 'Set provider.apiKey to {"command": "…"}.',
  "storeOptions.keyFile": 'Set storeOptions.key to {"file": "PATH"}.',
  "serve.insecure": '"insecure" replaces it.',
  "host.insecure": '"insecure" replaces it.',
  "storeOptions.insecure": '"insecure" replaces it.',
};

/** Returns the sentence about a removed key; undefined for other keys. @param name the dotted key, or its variable */
export function replacementOf(name: string, nameOf: (key: string) => string = (key) => key): string | undefined {
  const isMeant = (key: string) => {
    const [start = "", end] = key.split("*").map(nameOf);
    return end === undefined ? name === start : name.startsWith(start) && name.endsWith(end);
  };
  return Object.entries(REMOVED).find(([key]) => isMeant(key))?.[1];
}
