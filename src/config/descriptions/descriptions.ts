import { OF_OPERATION } from "./operation.js";
import { OF_SERVERS } from "./servers.js";
import type { SectionTexts, ValueTexts } from "./texts.js";

/** No command loads this table. `npm run schemas` writes it into schemas/config.json and docs/configuration-keys.md. */
export const SECTIONS: SectionTexts = {
  ports: { meaning: "The ports that servers may use." },
  pool: { meaning: "The servers as a group." },
  runtime: { meaning: "The Copilot program that each server runs." },
  auth: { meaning: "The source of each user's GitHub token, for GitHub's own models. Set at most one source." },
  "auth.githubApp": {
    meaning:
      "A GitHub App whose installation pays for all users. The fleet gets its tokens from GitHub and renews them. Set all three keys.",
  },
  provider: { meaning: "Your own model service. `null` stands for GitHub's own models." },
  session: { meaning: "Sessions and their turns." },
  "session.infinite": {
    meaning: "The SDK's `infiniteSessions`, which shortens a long history. It is always off for ephemeral sessions.",
  },
  sandbox: { meaning: "The boundary that the operating system puts around each server." },
  identity: { meaning: "How users prove to the front door who they are. See [Identity](identity.md)." },
  "identity.github": { meaning: "Users who sign on with their own GitHub tokens. See [GitHub](identity.md#github)." },
  lock: { meaning: "Leases on sessions." },
  health: { meaning: "How `serve` checks and restarts servers." },
  recycle: { meaning: "When `serve` replaces a server by a fresh process with the same home." },
  drain: { meaning: "How servers stop." },
  serve: { meaning: "The supervisor, the front door and the HTTP API." },
  http: { meaning: "The [HTTP API](http.md), whose address is `serve.http`." },
  "serve.tls": {
    meaning:
      "TLS at the front door and at the HTTP API. The files may be replaced while `serve` runs. See [TLS](front-door.md#tls).",
  },
  usage: { meaning: "The [ledger](usage.md) of turns, model requests and tokens." },
  limits: { meaning: "How much users may have at once. `null` removes a limit." },
  "limits.default": { meaning: "The limits of each user." },
  "limits.total": { meaning: "The limits of all users together." },
  events: { meaning: "The [audit log](events.md): who did what, and why." },
  storeOptions: { meaning: "The connection to a store in Redis." },
  host: { meaning: "This host, in a fleet of several hosts." },
  "host.tls": {
    meaning: "TLS from this host to the front doors of others. See [Many hosts](hosts.md#tls-between-hosts).",
  },
  storage: { meaning: "The session state of a fleet of several hosts." },
};

export const DESCRIPTIONS: ValueTexts = { ...OF_SERVERS, ...OF_OPERATION };
