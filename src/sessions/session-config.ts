import type { PermissionHandler, ProviderConfig, SessionConfig } from "@github/copilot-sdk";
import type { Config } from "../config/schema.js";
import type { Isolation, SessionRecord } from "../store/store.js";

/** What a caller of the library may set on a session. The fleet's configuration fills in what is left out. */
export type SessionOptions = Omit<SessionConfig, "sessionId">;

export interface Surroundings {
  config: Config;
  isolation: Isolation;
  provider: ProviderConfig | null;
  /** The user's own GitHub token, on a server that is not the user's own. */
  gitHubToken: string | null;
}

/**
 * The settings of a session as the runtime gets them, the same for create and resume: a provider and its key are never
 * persisted by the runtime, so they have to be given each time.
 */
export function sessionConfig(
  { config, isolation, provider, gitHubToken }: Surroundings,
  record: SessionRecord,
  overrides: SessionOptions = {},
): SessionOptions {
  // On a shared server tools would act for all users with one set of rights: none unless they are named.
  const tools = config.session.tools ?? (isolation === "shared" ? [] : null);
  const model = record.model ?? config.session.model;
  return {
    ...(model === null ? {} : { model }),
    streaming: true,
    infiniteSessions: record.persistence === "ephemeral" ? { enabled: false } : config.session.infinite,
    onPermissionRequest: permissions(config),
    ...(tools === null ? {} : { availableTools: tools }),
    ...(provider === null ? {} : { provider }),
    ...(gitHubToken === null ? {} : { gitHubToken }),
    ...overrides,
  };
}

/** What answers a session that asks whether it may use a tool. */
export function permissions({ session }: Pick<Config, "session">): PermissionHandler {
  return session.approve === "all" ? approveOnce : reject;
}

const approveOnce: PermissionHandler = () => ({ kind: "approve-once" });

const reject: PermissionHandler = () => ({
  kind: "reject",
  feedback: 'Tools are not allowed here (session.approve is "none").',
});
