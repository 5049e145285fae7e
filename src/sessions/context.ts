import type { Config } from "../config/schema.js";
import type { HostDirectory } from "../hosts/directory.js";
import type { Takeover } from "../hosts/takeover.js";
import type { EventLog } from "../model/events/event.js";
import type { UsageRecorder } from "../model/usage/usage.js";
import type { ModelProvider } from "../models/provider.js";
import type { Clients } from "../pool/clients.js";
import type { Pool } from "../pool/pool.js";
import type { Store } from "../store/ports.js";
import type { Leases } from "./leases/leases.js";
import type { AgentRequests } from "./requests/agent-requests.js";

export interface SessionsContext {
  store: Store;
  config: Config;
  env: NodeJS.ProcessEnv;
  pool: Pool;
  clients: Clients;
  leases: Leases;
  directory: HostDirectory;
  takeover: Takeover;
  requests: AgentRequests;
  /** Records turns, and the model requests that no model gateway of this process passes on. */
  ledger: UsageRecorder;
  provider: Pick<
    ModelProvider,
    | "check"
    | "of"
    | "keep"
    | "attribute"
    | "expectRequests"
    | "hasPassed"
    | "troubleOf"
    | "beforeRequests"
    | "lastGiven"
    | "noteGiven"
  >;
  events: EventLog;
  /** Reports a problem that did not stop the work. */
  warn: (message: string) => void;
}
