import type { PermissionHandler, ProviderConfig, SessionConfig } from "@github/copilot-sdk";
import type { Config } from "../config/schema.js";
import type { Isolation } from "../model/server.js";
import type { SessionRecord } from "../model/session.js";

/** The settings that a caller of the library may set on a session. The fleet's configuration fills in the others. */
export type SessionOptions = Omit<SessionConfig, "sessionId">;

export interface Surroundings {
  config: Config;
  isolation: Isolation;
  /** Whether it is the user's own server. */
  own: boolean;
  provider: ProviderConfig | null;
  /** The user's own GitHub token, on a server that is not the user's own. */
  gitHubToken: string | null;
}

/**
 * The settings of a session as the runtime gets them. They are the same for create and resume, because the runtime never
 * persists a provider and its key.
 */
export function sessionConfig(
  { config, isolation, own, provider, gitHubToken }: Surroundings,
  record: SessionRecord,
  overrides: SessionOptions = {},
): SessionOptions {
  // On a shared server, tools would act for all users with the same rights. So none are available unless they are named.
  const tools = config.session.tools ?? (isolation === "shared" ? [] : null);
  const model = record.model ?? config.session.model;
  return {
    ...(model === null ? {} : { model }),
    streaming: true,
    infiniteSessions: record.persistence === "ephemeral" ? { enabled: false } : config.session.infinite,
    ...(tools === null ? {} : { availableTools: tools }),
    ...(provider === null ? {} : { provider }),
    ...(gitHubToken === null ? {} : { gitHubToken }),
    ...overrides,
    onPermissionRequest: permissions(config, own, overrides),
  };
}

/**
 * The handler for a session's requests to use a tool. The caller's own handler decides if `session.approve` permits this,
 * and always for the tools that the caller brings, because those run in the caller's process.
 */
export function permissions(
  { session: { approve } }: Pick<Config, "session">,
  own: boolean,
  { onPermissionRequest: asked, tools = [] }: Pick<SessionOptions, "onPermissionRequest" | "tools"> = {},
): PermissionHandler {
  if (approve === "all") return asked ?? (() => ({ kind: "approve-once" }));
  const names = new Set(tools.map(({ name }) => name));
  return (request, invocation) => {
    const isOwnTool = request.kind === "custom-tool" && names.has(request.toolName);
    if (asked !== undefined && (isOwnTool || (own && approve === "ask"))) return asked(request, invocation);
    return { kind: "reject", feedback: `Tools are not allowed here (session.approve is "${approve}").` };
  };
}
