/** The pages for operators, in one file that the console loads when an operator opens the first of them. */
export { AllSessions } from "./all-sessions.js";
export { Servers } from "./servers.js";
export { Tokens } from "./tokens.js";
export { Users } from "./users.js";
