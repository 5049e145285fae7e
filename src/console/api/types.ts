/** The answers of the API that the console uses, in the types that are generated from `/openapi.json`. */
import type { components, operations } from "../../../schemas/openapi.js";

export {
  pathsV1EventsGetParametersQueryTypeValues as EVENT_TYPES,
  pathsV1UsageGetParametersQueryByValues as USAGE_BY,
} from "../../../schemas/openapi.js";

type Success<Responses> = Responses[keyof Responses & (200 | 201)];
/** The JSON with which an operation of the API succeeds. */
export type Answer<Name extends keyof operations> =
  Success<operations[Name]["responses"]> extends { content: { "application/json": infer Body } } ? Body : never;

type Schemas = components["schemas"];
export type ProblemFields = Pick<Schemas["Problem"], "status" | "detail"> &
  Partial<Pick<Schemas["Problem"], "suggestions" | "requestId">>;
export type Caller = Schemas["Caller"];
export type Scope = Caller["scopes"][number];
export type Session = Schemas["Session"];
export type Server = Schemas["BusyServer"];
export type Host = Schemas["Host"];
export type Token = Schemas["Token"];
export type IssuedToken = Answer<"issueToken">;
export type User = Answer<"listUsers">["users"][number];
export type Receipt = Answer<"purgeUser">;
export type UserLimits = Answer<"getUserLimits">;
export type LimitName = keyof UserLimits["limits"];
export type Report = Answer<"getUsage">;
export type FleetEvent = Answer<"listEvents">["events"][number];
export type Sample = Schemas["Sample"];
export type HostSamples = Answer<"listSamples">["hosts"][number];
/** A permission or a question of the agent. */
export type AgentRequest = Schemas["AgentRequest"];
export type TranscriptEntry = Schemas["TranscriptEntry"];

/** An event of a session, with the fields that the console reads. */
export interface SessionEvent {
  id: string;
  type: string;
  timestamp: string;
  agentId?: string;
  // biome-ignore lint/suspicious/noExplicitAny: each type of event has its own fields
  data: any;
}
