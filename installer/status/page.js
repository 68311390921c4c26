"use strict";
(function () {
  var late = document.createElement("p"), told = document.createElement("p"), busy = false, again = false, timer = null;
  late.className = "box bad";
  late.hidden = true;
  late.setAttribute("role", "status");
  late.textContent = "The installer does not answer. Either the machine has handed over to its new system, which takes this port with it, or the network is gone.";
  told.setAttribute("role", "status");
  told.style.cssText = "position:absolute;left:-99rem";
  document.body.prepend(late, told);
  var query = document.getElementById("q");
  function show() {
    timer = null;
    if (busy) { again = true; return; }
    busy = true;
    fetch("/?q=" + encodeURIComponent(query.value), {cache: "no-store"}).then(function (r) { return r.text(); }).then(function (text) {
      var next = new DOMParser().parseFromString(text, "text/html"), selected = String(getSelection());
      var log = document.getElementById("log"), end = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
      document.title = next.title;
      var was = document.querySelector(".state").textContent, now = next.querySelector(".state").textContent;
      if (was.replace(/[0-9]+ %/, "") !== now.replace(/[0-9]+ %/, "")) { told.textContent = now; }
      if (!selected) { // what somebody is copying stays where it is
        var open = {};
        document.querySelectorAll("details").forEach(function (d) { open[d.id] = d.open; });
        document.getElementById("live").replaceWith(document.adoptNode(next.getElementById("live")));
        document.querySelectorAll("details").forEach(function (d) { if (d.id in open) { d.open = open[d.id]; } });
        log.textContent = next.getElementById("log").textContent;
        if (end) { log.scrollTop = log.scrollHeight; }
      }
      late.hidden = true;
    }).catch(function () {
      late.hidden = false;
    }).finally(function () {
      busy = false;
      if (again) { again = false; soon(); }
    });
  }
  function soon() { if (timer === null) { timer = setTimeout(show, 700); } }
  new EventSource("/api/v1/events").onmessage = soon;
  setInterval(function () { if (!document.hidden) { soon(); } }, 3000);
  query.addEventListener("input", soon);
  query.form.addEventListener("submit", function (e) { e.preventDefault(); soon(); });
  var log = document.getElementById("log");
  log.scrollTop = log.scrollHeight;
})();
