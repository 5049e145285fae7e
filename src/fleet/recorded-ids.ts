import { validateUser } from "../base/ids.js";
import { listTokens } from "../identity/tokens.js";
import { referenceOf } from "../servers/server.js";
import { type FleetParts, openParts } from "./parts.js";

export type IdKind = "server" | "session" | "user" | "token" | "host" | "model";

export interface RecordedIdsOptions {
  env: NodeJS.ProcessEnv;
  cwd: string;
  configFile?: string | undefined;
  /** Limits sessions and tokens to those of this user, if the user has any. */
  user?: string | undefined;
}

/**
 * Lists ids for shell completion. Starts nothing and takes no lock. Does not read the records of sessions, because
 * there may be thousands. So it may list a session whose deletion was interrupted.
 */
export async function recordedIds(kinds: readonly IdKind[], options: RecordedIdsOptions): Promise<string[]> {
  const { env, cwd, configFile } = options;
  const user = options.user === undefined ? null : validateUser(options.user);
  const parts = openParts({ env, cwd, ...(configFile === undefined ? {} : { configFile }) });
  try {
    const found = await Promise.all(kinds.map(async (kind) => await READERS[kind](parts, user)));
    return [...new Set(found.flat())].sort();
  } finally {
    await parts.close();
  }
}

const READERS: Record<IdKind, (parts: FleetParts, user: string | null) => Promise<string[]>> = {
  server: async ({ hosts }) =>
    (await hosts.recorded()).map(({ server, hostName }) => referenceOf({ id: server.id, hostName })),
  // If the user has no sessions of their own, offer all sessions, because the user may be a member of some.
  session: async ({ store }, user) => await ownOr(user, async (owner) => await store.sessions.ids(owner)),
  user: async ({ hosts, store }) => {
    const [servers, placements, tokens] = await Promise.all([
      hosts.recorded(),
      store.placements.list(),
      listTokens(store),
    ]);
    return [...servers.flatMap(({ server }) => server.user ?? []), ...[...placements, ...tokens].map((of) => of.user)];
  },
  token: async ({ store }, user) =>
    await ownOr(user, async (owner) => (await listTokens(store, owner ?? undefined)).map(({ id }) => id)),
  host: async ({ hosts }) => await hosts.names(),
  model: async ({ config }) => (config.session.model === null ? [] : [config.session.model]),
};

async function ownOr(user: string | null, list: (user: string | null) => Promise<string[]>): Promise<string[]> {
  const own = await list(user);
  return own.length > 0 || user === null ? own : await list(null);
}
