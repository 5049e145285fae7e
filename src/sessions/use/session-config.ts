import type { ProviderConfig, SessionConfig } from "@github/copilot-sdk";
import type { Config } from "../../config/schema.js";
import type { Isolation } from "../../model/server.js";
import { type SessionRecord, toolsOf } from "../../model/session.js";
import type { Asker } from "../requests/asker.js";
import { permissions } from "./open-session.js";

/** The settings that a caller of the library may set on a session. The fleet's configuration fills in the others. */
export type SessionOptions = Omit<SessionConfig, "sessionId">;

interface Surroundings {
  config: Config;
  isolation: Isolation;
  /** Whether the server is the user's own. */
  own: boolean;
  /** Whether this client refuses tools now. All clients of a session get each request, also in the turns of others. */
  decides: () => boolean;
  /** Opens the requests of the agent. Null if nobody answers them. */
  asker: Asker | null;
  provider: ProviderConfig | null;
  /** The user's own GitHub token, on a server that is not the user's own. */
  gitHubToken: string | null;
}

/**
 * The settings of a session for the SDK. `resumeSession` gets all of them again, because the runtime never stores a provider
 * and its key.
 */
export function sessionConfig(
  { config, isolation, own, decides, asker, provider, gitHubToken }: Surroundings,
  record: SessionRecord,
  given: SessionOptions = {},
): SessionOptions {
  const tools = toolsOf(record, config, isolation);
  const model = record.model ?? config.session.model;
  const overrides = { ...asker?.handlersFor(config), ...given };
  const decide = permissions(config, own, overrides, decides);
  return {
    ...(model === null ? {} : { model }),
    streaming: true,
    infiniteSessions: record.persistence === "ephemeral" ? { enabled: false } : config.session.infinite,
    ...(tools === null ? {} : { availableTools: tools }),
    ...(provider === null ? {} : { provider }),
    ...(gitHubToken === null ? {} : { gitHubToken }),
    ...overrides,
    onPermissionRequest: asker?.guard(decide) ?? decide,
  };
}
