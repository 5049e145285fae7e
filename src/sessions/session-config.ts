import type { PermissionHandler, ProviderConfig, SessionConfig } from "@github/copilot-sdk";
import type { Config } from "../config/schema.js";
import type { SessionRecord } from "../store/store.js";

/** What a caller of the library may set on a session. The fleet's configuration fills in what is left out. */
export type SessionOptions = Omit<SessionConfig, "sessionId">;

/**
 * The settings of a session as the runtime gets them, the same for create and resume: a provider and its key are never
 * persisted by the runtime, so they have to be given each time.
 */
export function sessionConfig(
  config: Config,
  record: SessionRecord,
  provider: ProviderConfig | null,
  overrides: SessionOptions = {},
): SessionOptions {
  return {
    model: record.model ?? config.session.model,
    streaming: true,
    infiniteSessions: config.session.infinite,
    onPermissionRequest: config.session.approve === "all" ? approveOnce : reject,
    ...(provider === null ? {} : { provider }),
    ...overrides,
  };
}

const approveOnce: PermissionHandler = () => ({ kind: "approve-once" });

const reject: PermissionHandler = () => ({
  kind: "reject",
  feedback: 'Tools are not allowed here (session.approve is "none").',
});
