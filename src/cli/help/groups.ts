/** The commands in the order in which help lists them. The name of a topic stands for all its commands. */
export const GROUPS: readonly { title: string; commands: readonly string[] }[] = [
  { title: "SERVERS", commands: ["spawn", "ps", "logs", "stop", "restart", "drain", "route", "connect"] },
  {
    title: "SESSIONS",
    commands: [
      "create",
      "send",
      "chat",
      "resume",
      "list",
      "transcript",
      "delete",
      "export",
      "import",
      "evict",
      "lock",
      "unlock",
    ],
  },
  { title: "USERS", commands: ["user", "token", "limit", "usage"] },
  {
    title: "OPERATION",
    commands: ["serve", "open", "proxy", "top", "describe", "doctor", "gc", "events", "store"],
  },
  {
    title: "SET-UP",
    commands: ["init", "smoke", "config", "trust", "deploy", "explain", "autocomplete", "version", "help"],
  },
];
